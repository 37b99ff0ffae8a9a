"""Exploration logs → value network, its evaluation, its frontier."""
