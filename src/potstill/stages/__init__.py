"""The stages of the flow, one module each: a function from files to files, called by a rule's script."""
