"""What one stage leaves for another: feedback, a selector's candidates, the store of adapters."""
