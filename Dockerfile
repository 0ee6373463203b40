# Crossfade in a container. Checked for syntax by tests/layout; not built by the project's own tests.
FROM rust:1.90-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock clippy.toml rustfmt.toml ./
COPY crates ./crates
COPY connectors ./connectors
COPY tests ./tests
COPY benches ./benches
RUN cargo build --release --locked -p crossfade-cli --features kafka

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home --home-dir /var/lib/crossfade crossfade
COPY --from=build /src/target/release/crossfade /usr/local/bin/crossfade
USER crossfade
WORKDIR /var/lib/crossfade
VOLUME /var/lib/crossfade
ENTRYPOINT ["crossfade"]
CMD ["--help"]
