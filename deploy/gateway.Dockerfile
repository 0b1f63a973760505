# Caddy with our configuration, run by an unprivileged user.
ARG BASE=caddy:2.10.2
FROM ${BASE}

# A new volume takes its owner from the image.
COPY deploy/Caddyfile /etc/caddy/Caddyfile
COPY deploy/gateway /usr/local/bin/gateway
RUN mkdir -p /data && chown 10001:10001 /data \
    && chmod 644 /etc/caddy/Caddyfile && chmod 755 /usr/local/bin/gateway
ENV XDG_DATA_HOME=/data XDG_CONFIG_HOME=/tmp
USER 10001:10001
ENTRYPOINT ["gateway"]
