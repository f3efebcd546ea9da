"""What `tidegate doctor` looks at: one small function a condition, each of which makes a Finding."""
