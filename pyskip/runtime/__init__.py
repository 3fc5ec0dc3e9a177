"""A loaded model that decodes: `llama` (the public class), and under it what decides and what decodes."""
