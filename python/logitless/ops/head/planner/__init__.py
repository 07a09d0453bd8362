"""How a head call is computed: strategies, what they cost, the plan."""
