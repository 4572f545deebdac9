"""Workers that train nothing: they end as they are told to, with made figures."""

from rm_jax import schemas, store
from rm_jax.launch import units, worker

ACCURACY = {("bradley_terry", 0): 0.5, ("bradley_terry", 1): 0.6,
            ("hinge", 0): 0.7, ("hinge", 1): 0.9}  # fmt: skip


def write_figures(root, name):
    """What a trained unit leaves."""
    config = store.read_json(units.config_file(root, name))
    value = ACCURACY[config["loss"]["name"], config["init_seed"]]
    sets = {"valid": {"accuracy": value}}
    path = store.join(units.folder(root, name), "evals.json")
    store.write_sealed(path, schemas.stamped("evals.json", {"step": 3, "sets": sets}))


class Pool:
    """Stands in for local.Local: workers end with the given exit codes, then 0."""

    def __init__(self, codes=(), silent=0):
        self.silent = silent  # times that nothing has ended
        self.codes, self.workers, self.started, self.sent = list(codes), 1, [], []
        self._group = None

    def __call__(self, root, workers):
        self.root = root
        return self

    @property
    def free(self):
        return self._group is None

    @property
    def busy(self):
        return self._group is not None

    def start(self, group):
        self._group = group
        self.started.append(group)
        path = worker.log_file(self.root, group)
        with open(path, "a") as log:
            log.write(f"start {len(self.started)}\n")

    def ended(self, within):
        if self.silent:
            self.silent -= 1
            return []
        group, self._group = self._group, None
        code = self.codes.pop(0) if self.codes else 0
        if callable(code):
            code = code(self.root, group)
        elif code == 0:
            for name in group:
                write_figures(self.root, name)
        return [(group, code)]

    def send(self, number):
        self.sent.append(number)
