"""The forgepress.parallel package."""
