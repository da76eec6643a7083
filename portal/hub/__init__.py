"""The node hub: nodes' connections, how they enrol and sign in, and the commands they get."""
