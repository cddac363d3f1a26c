// A server of the session lab: who it is, whose session this is, and how often it was counted up.
//   node app.js NAME PORT STORE [ADDRESS...]
'use strict';
const express = require('express');

const [name, port, store, ...addresses] = process.argv.slice(2);
const secret = 'the lab has no secrets';
const hour = 3600 * 1000;

function redis(options) {
  const Redis = require('ioredis');
  const { default: RedisStore } = require('connect-redis');
  const client = new Redis({ maxRetriesPerRequest: 1, connectTimeout: 1000, commandTimeout: 1000, ...options });
  // Requests say that the store is out of reach.
  client.on('error', () => {});
  return new RedisStore({ client });
}

function endpoint(address) {
  const [host, number] = address.split(':');
  return { host, port: Number(number) };
}

function postgres(address) {
  const session = require('express-session');
  const { Pool } = require('pg');
  const Store = require('connect-pg-simple')(session);
  const pool = new Pool({ ...endpoint(address), user: 'lab', database: 'lab', connectionTimeoutMillis: 1000 });
  pool.on('error', () => {});
  return new Store({ pool, createTableIfMissing: false, errorLog: () => {} });
}

function stored(made) {
  return require('express-session')({ store: made, secret, resave: false, saveUninitialized: false });
}

const kinds = {
  memory: () => stored(undefined),
  redis: () => stored(redis(endpoint(addresses[0]))),
  sentinel: () => stored(redis({ sentinels: addresses.map(endpoint), name: 'lab' })),
  postgres: () => stored(postgres(addresses[0])),
  cookie: () => require('cookie-session')({ name: 'session', keys: [secret], maxAge: hour }),
  'encrypted-cookie': () =>
    require('client-sessions')({ cookieName: 'session', secret, duration: hour, activeDuration: hour }),
};

const app = express();
app.disable('x-powered-by');
app.get('/', (request, response, next) => (request.query.health === undefined ? next() : response.send('ok')));
app.use(express.raw({ type: 'application/octet-stream', limit: '1mb' }));
app.use(kinds[store]());
app.all('/', (request, response) => {
  const { session } = request;
  if (request.query.login !== undefined) {
    session.user = request.query.login;
    session.count = 0;
  } else if (session.user !== undefined) {
    session.count += 1;
  }
  const bytes = Buffer.isBuffer(request.body) ? request.body.length : 0;
  response.type('text').send(`${name} ${session.user ?? '-'} ${session.count ?? 0} ${bytes} /`);
});
app.use((error, request, response, next) => {
  // A session that could not be stored after the answer was sent is told to nobody.
  if (!response.headersSent) response.status(500).type('text').send(`${name} failed: ${error.message}`);
});
app.listen(Number(port), '0.0.0.0', () => console.log(`${name} listens`));
