"""The parts of ``weights``: what is known, where it is fetched from, and the child process that runs pip."""
