"""./dev gpu: everything a GPU can be asked, in one command of at most ten minutes."""
