"""`python -m unlearnkit`: what `accelerate launch -m unlearnkit` starts in every process."""

from unlearnkit.cli import main

main()
