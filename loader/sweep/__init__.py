"""`-m`: runs for many combinations of settings, sampled, started, continued and compared."""
