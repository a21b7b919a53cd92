"""Several devices and several machines: the strategy, the cluster and its workers."""
