"""Why one backend wins: the limits of the machine, the ops a model's time goes to, and who wins at which shape."""
