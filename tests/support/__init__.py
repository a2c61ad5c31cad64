"""What serves the tests: fakes, oracles, toy runs, the pages."""
