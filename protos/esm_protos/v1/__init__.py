"""Generated messages and service stubs of the contract, version 1."""
