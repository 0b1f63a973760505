# Debian's PostgreSQL in the shape of the official image.
FROM anitune-test-debian
COPY docker-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
RUN chmod 755 /usr/local/bin/docker-entrypoint.sh \
    && rm -rf /var/lib/postgresql/* && chown postgres:postgres /var/lib/postgresql \
    && mkdir -p /var/run/postgresql && chmod 3777 /var/run/postgresql
ENV LANG=C.UTF-8 \
    PATH=/usr/lib/postgresql/15/bin:$PATH \
    PGDATA=/var/lib/postgresql/15/docker
VOLUME /var/lib/postgresql
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
