"""Plans for people: what differs between two, why each site got its bits, and what a plan looks like."""
