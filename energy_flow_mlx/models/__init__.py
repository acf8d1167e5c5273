"""The model, one module a file; data flows mapper -> lattice (processor, neuron, carrier) -> collector."""
