"""Grafts in trainers that people already use. Nothing is imported here: ask for the trainer that you have.

from graftlib.integrations.transformers import GraftCallback    # Hugging Face Trainer
from graftlib.integrations.lightning import GraftCallback       # Lightning
from graftlib.integrations.accelerate import follow             # Accelerate
"""
