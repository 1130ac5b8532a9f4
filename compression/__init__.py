"""The forgepress.compression package."""
