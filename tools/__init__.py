"""Plugins for asv, named in ``asv.conf.json``."""
