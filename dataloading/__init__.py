"""The forgepress.dataloading package."""
