# Kept for tools that still look for setup.py; all metadata is in pyproject.toml.
__import__("setuptools").setup()
