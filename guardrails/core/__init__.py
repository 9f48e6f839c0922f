"""The ground that every guard stands on: errors, clock, outcomes, events, the contract and the pipeline."""
