"""Put the units of hidden layers in another order: a permutation that weights before and behind absorb."""
