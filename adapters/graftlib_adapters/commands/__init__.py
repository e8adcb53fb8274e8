"""Commands that the adapters add to ``graftlib``; their help imports neither torch nor a method."""
