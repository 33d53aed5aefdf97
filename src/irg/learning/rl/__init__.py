"""Learning by reward: prompts, rollouts, rewards, advantages, packs, loss (``docs/rl.md``)."""
