"""Golden cases: our network against numbers recorded from the reference. See :mod:`.fixture`."""
