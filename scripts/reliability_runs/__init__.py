"""How a server of a tiny model bears load, faults and hostile input, measured from outside."""
