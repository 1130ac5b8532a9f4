"""The forgepress.trainer package."""
