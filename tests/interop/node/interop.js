'use strict';
// The interop workload in Node, in the vocabulary of ../README.md. There is no maintained SPIFFE SDK
// for it, so this is the bare protocol: grpc-js, our proto file and the crypto of the standard library.

const crypto = require('node:crypto');
const path = require('node:path');
const tls = require('node:tls');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const AUDIENCE = 'interop';
const CALL_MS = 10_000;
const PROTO = path.join(__dirname, '../../../proto/spiffe/workload.proto');

const say = (event, fields = {}) => console.log(JSON.stringify({ event, ...fields }));
const codeName = (error) => grpc.status[error.code] ?? 'UNKNOWN';

function connect() {
  const definition = loader.loadSync(PROTO, { keepCase: true, longs: Number, defaults: true });
  const { SpiffeWorkloadAPI } = grpc.loadPackageDefinition(definition);
  const socket = process.env.SPIFFE_ENDPOINT_SOCKET;
  if (!socket) throw new Error('SPIFFE_ENDPOINT_SOCKET is not set');
  return new SpiffeWorkloadAPI(socket.replace(/^unix:\/\//, 'unix:'), grpc.credentials.createInsecure());
}

const header = () => {
  const metadata = new grpc.Metadata();
  metadata.set('workload.spiffe.io', 'true');
  return metadata;
};

const soon = () => ({ deadline: Date.now() + CALL_MS });

const unary = (client, method, request) =>
  new Promise((resolve, reject) => {
    client[method](request, header(), soon(), (error, answer) => (error ? reject(error) : resolve(answer)));
  });

const first = (client, method) =>
  new Promise((resolve, reject) => {
    const stream = client[method]({}, header(), soon());
    stream.once('data', (message) => {
      resolve(message);
      stream.cancel();
    });
    // After `resolve` this only hears the echo of our own cancel.
    stream.on('error', reject);
    stream.once('end', () => reject(new Error(`${method} ended without a message`)));
  });

/** Splits certificates that are laid end to end without padding. */
function certificates(der) {
  const found = [];
  for (let at = 0; at < der.length; ) {
    const short = der[at + 1] < 0x80;
    const octets = short ? 0 : der[at + 1] & 0x7f;
    const body = short ? der[at + 1] : der.readUIntBE(at + 2, octets);
    const end = at + 2 + octets + body;
    if (der[at] !== 0x30 || end > der.length) throw new Error('not a sequence of certificates');
    found.push(new crypto.X509Certificate(der.subarray(at, end)));
    at = end;
  }
  return found;
}

const domain = (id) => id.replace(/^spiffe:\/\//, '').split('/')[0];
const serial = (certificate) => certificate.serialNumber.toLowerCase().replace(/^0+/, '');
const unix = (date) => Math.floor(Date.parse(date) / 1000);

function sayX509(svid) {
  const [leaf] = certificates(svid.x509_svid);
  say('x509', { spiffe_id: svid.spiffe_id, serial: serial(leaf), not_after: unix(leaf.validTo) });
}

/** One step is enough: Mayfly's authority signs leaves directly. The handshake below checks all. */
function verifyX509(svid) {
  const [leaf] = certificates(svid.x509_svid);
  const now = Date.now();
  if (leaf.subjectAltName !== `URI:${svid.spiffe_id}`) throw new Error(`the SAN is ${leaf.subjectAltName}`);
  if (leaf.ca) throw new Error('the leaf is a CA');
  if (Date.parse(leaf.validFrom) > now || Date.parse(leaf.validTo) < now) throw new Error('outside its validity');
  const key = crypto.createPrivateKey({ key: svid.x509_svid_key, format: 'der', type: 'pkcs8' });
  if (!leaf.checkPrivateKey(key)) throw new Error('key and certificate do not belong together');
  const issued = certificates(svid.bundle).some((ca) => leaf.checkIssued(ca) && leaf.verify(ca.publicKey));
  if (!issued) throw new Error('no authority of the bundle signed the leaf');
}

async function fetchX509(client) {
  const message = await first(client, 'FetchX509SVID');
  const [svid] = message.svids;
  sayX509(svid);
  const bundles = await first(client, 'FetchX509Bundles');
  for (const id of Object.keys(bundles.bundles).sort()) say('bundle', { kind: 'x509', trust_domain: domain(id) });
  verifyX509(svid);
  say('validated', { what: 'x509' });
  return svid;
}

function verifyJwt(token, keys) {
  const [head, body, signature] = token.split('.');
  const part = (text) => JSON.parse(Buffer.from(text, 'base64url'));
  const { alg, kid } = part(head);
  if (alg !== 'ES256') throw new Error(`unexpected algorithm ${alg}`);
  const jwk = keys.find((key) => key.kid === kid);
  if (!jwk) throw new Error(`no key ${kid} in the bundle`);
  const key = { key: crypto.createPublicKey({ key: jwk, format: 'jwk' }), dsaEncoding: 'ieee-p1363' };
  const signed = Buffer.from(`${head}.${body}`);
  if (!crypto.verify('sha256', signed, key, Buffer.from(signature, 'base64url'))) throw new Error('bad signature');
  const claims = part(body);
  if (![claims.aud].flat().includes(AUDIENCE)) throw new Error('another audience');
  if (claims.exp * 1000 <= Date.now()) throw new Error('expired');
  return claims;
}

async function fetchJwt(client) {
  const { svids } = await unary(client, 'FetchJWTSVID', { audience: [AUDIENCE] });
  const [{ spiffe_id, svid: token }] = svids;
  const { bundles } = await first(client, 'FetchJWTBundles');
  const own = `spiffe://${domain(spiffe_id)}`;
  const claims = verifyJwt(token, JSON.parse(bundles[own]).keys);
  if (claims.sub !== spiffe_id) throw new Error('the token is about somebody else');
  say('jwt', { spiffe_id, exp: claims.exp });
  say('bundle', { kind: 'jwt', trust_domain: domain(own) });
  say('validated', { what: 'jwt' });
  const answer = await unary(client, 'ValidateJWTSVID', { audience: AUDIENCE, svid: token });
  if (answer.spiffe_id !== spiffe_id) throw new Error('the server read another name');
  say('validated', { what: 'jwt_online' });
  return token;
}

/** Both ends of one connection, each asking the other for a certificate. */
function mtls(svid) {
  const pem = (certificate) => certificate.toString();
  const material = {
    cert: certificates(svid.x509_svid).map(pem).join(''),
    key: crypto.createPrivateKey({ key: svid.x509_svid_key, format: 'der', type: 'pkcs8' })
      .export({ format: 'pem', type: 'pkcs8' }),
    ca: certificates(svid.bundle).map(pem),
  };
  const named = (certificate) => certificate.subjectaltname === `URI:${svid.spiffe_id}`;
  return new Promise((resolve, reject) => {
    const server = tls.createServer({ ...material, requestCert: true, rejectUnauthorized: true }, (socket) => {
      if (named(socket.getPeerCertificate())) socket.pipe(socket);
      else socket.destroy(new Error('the client has another name'));
    });
    server.on('tlsClientError', reject);
    server.listen(0, '127.0.0.1', () => {
      const options = {
        ...material,
        port: server.address().port,
        // A SPIFFE peer is known by its URI name, not by the host it listens on.
        checkServerIdentity: (_, certificate) => (named(certificate) ? undefined : new Error('the server has another name')),
      };
      const socket = tls.connect(options, () => socket.write('mayfly'));
      socket.on('error', reject);
      socket.once('data', () => {
        say('mtls', { ok: true, peer: svid.spiffe_id });
        socket.destroy();
        server.close(resolve);
      });
    });
  });
}

/** Opens the stream that stays; `onSvid` may return true to be done with it. */
function watch(client, patience, onSvid) {
  return new Promise((resolve) => {
    const stream = client.FetchX509SVID({}, header());
    const timer = setTimeout(() => done({ late: true }), patience * 1000);
    const done = (outcome) => {
      clearTimeout(timer);
      resolve(outcome);
      stream.cancel();
    };
    stream.on('data', (message) => onSvid(message.svids[0]) && done({}));
    stream.on('error', (error) => done({ error }));
    stream.on('end', () => done({ error: { code: grpc.status.OK, message: 'end of stream' } }));
  });
}

/** A rotation is a second certificate on one and the same stream. */
async function untilRotated(client, patience) {
  let known;
  const outcome = await watch(client, patience, (svid) => {
    const next = serial(certificates(svid.x509_svid)[0]);
    known ??= next;
    if (next === known) return false;
    sayX509(svid);
    say('rotated', { serial: next });
    return true;
  });
  if (outcome.late) throw new Error(`no rotation within ${patience} s`);
  if (outcome.error) throw outcome.error;
}

async function untilEnded(client, token, patience) {
  let waiting = false;
  const { late, error } = await watch(client, patience, () => {
    if (!waiting) say('waiting');
    waiting = true;
    return false;
  });
  if (late) return say('unseen');
  say('ended', { code: codeName(error), detail: error.message });
  await refused('jwt', unary(client, 'FetchJWTSVID', { audience: [AUDIENCE] }));
  await refused('jwt_online', unary(client, 'ValidateJWTSVID', { audience: AUDIENCE, svid: token }));
}

async function refused(what, call) {
  try {
    await call;
    say('error', { detail: `${what} was still granted after the end` });
  } catch (error) {
    say('refused', { what, code: codeName(error), detail: error.message });
  }
}

async function main(args) {
  const at = args.indexOf('--patience');
  const patience = at < 0 ? 60 : Number(args[at + 1]);
  if (!args.some((a) => ['--once', '--until-rotated', '--until-ended'].includes(a))) {
    throw new Error('one of --once --until-rotated --until-ended is needed');
  }
  const client = connect();
  const svid = await fetchX509(client);
  const token = await fetchJwt(client);
  await mtls(svid);
  if (args.includes('--until-rotated')) await untilRotated(client, patience);
  if (args.includes('--until-ended')) await untilEnded(client, token, patience);
  client.close();
}

main(process.argv.slice(2)).catch((error) => {
  say('error', { detail: error.message });
  process.exitCode = 1;
});
