# What people and CI run. `make test` is the one test command; CI calls the same.
.PHONY: demo build test test-kafka lint soak examples bench bench-kafka bench-switch

TARGET := $(or $(CARGO_TARGET_DIR),target)

# The whole life of a migration on embedded parts, in under half a minute after the build. Needs Rust and a C compiler.
demo: build
	$(TARGET)/release/crossfade demo

build:
	cargo build --release -p crossfade-cli

# Every test, against real servers, but for the long ones over Kafka (`make test-kafka`), of which it has a short round. As root
# it installs what is missing; otherwise it ends with the exact list. The release build has Kafka in it: a C++ compiler.
test:
	ci/prepare
	cargo build --release -p crossfade-cli --features kafka
	ci/test

# All that goes over real brokers, and Debezium: the provider, a crossfade that is built with it, journeys and kills.
test-kafka:
	CROSSFADE_WITH_DEBEZIUM=1 ci/prepare
	cargo build --release -p crossfade-cli --features kafka
	ci/test-kafka

lint:
	ci/lint

# The long rounds of tests/recovery (at least 200 kills under live writers, with a report of kills per phase; builds with a
# defect, which must be found; at least 200 over all roles and three brokers) and of tests/journey, and the kills once more with
# the log on topics.
soak:
	CROSSFADE_WITH_DEBEZIUM=1 ci/prepare
	cargo build --release -p crossfade-cli --features kafka
	CROSSFADE_SOAK=1 CI=true cargo test -p crossfade-tests-recovery -p crossfade-tests-journey \
	  --features crossfade-tests-journey/kafka,crossfade-tests-recovery/kafka -- --nocapture --test-threads=1
	CROSSFADE_SOAK=1 ci/test-topics kills:: growing:: state:: servers::

# The migrations of examples/ at their full size, by the commands of their READMEs.
examples:
	ci/prepare
	cargo build --release -p crossfade-cli --features kafka
	CROSSFADE_EXAMPLES=full CI=true cargo test -p crossfade-tests-journey -- cowrie cycle_reports heimdall --nocapture --test-threads=1

# Crossfade and its peers on the same work in one run; see docs/performance.md.
bench: build
	ci/prepare sqlite3
	cargo run --release -p crossfade-benches

# The same with Kafka at the end or between, against Debezium. Needs Java.
bench-kafka:
	CROSSFADE_WITH_DEBEZIUM=1 ci/prepare
	cargo build --release -p crossfade-cli --features kafka
	cargo run --release -p crossfade-benches --features kafka -- to-topics over-topics kafka-log workers

# How long writers wait for a switch under load, and many switches with faults in them; see docs/performance.md and
# docs/reliability.md. CROSSFADE_SWITCHES says how many.
bench-switch: build
	CROSSFADE_SOAK=1 cargo test -p crossfade-tests-journey -- switches:: --nocapture --test-threads=1
