"""Simulators and scripted experts: record demonstrations, score rollouts, film them."""
