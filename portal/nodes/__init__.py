"""The machines: enrolment, what they are, whether they are there, and what happened to them."""
