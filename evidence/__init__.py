"""Training runs that prove or disprove what this project says about control: `python -m evidence --help`."""
