"""The engine that chat, rollouts and evaluations generate with."""
