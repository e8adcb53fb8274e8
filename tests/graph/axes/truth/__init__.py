"""Facts that others publish about axes that move together, and the models they are about."""
