"""From a SPEC to packed batches: sources, contract, tokens, layout."""
