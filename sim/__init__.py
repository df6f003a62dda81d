"""Simulators and scripted experts: record demonstrations, evaluate policies, film rollouts."""
