"""Ray actors: one small class per stage, each wrapping one object of `curation`."""
