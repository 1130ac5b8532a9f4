"""The forgepress.launch package."""
