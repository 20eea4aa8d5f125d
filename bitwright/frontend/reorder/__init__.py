"""Put hidden units and rows of the token table in another order, which nothing outside the model sees."""
