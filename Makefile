# The same two commands for those who like to type `make`; ARGS goes through: make demo ARGS=--quick
.PHONY: demo test setup lint clean
demo:
	@./run demo $(ARGS)
test:
	@./run test $(ARGS)
setup:
	@scripts/setup.sh
lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
