"""Knows the models, holds the memory's ledger, decides what runs. Never imports workers."""
