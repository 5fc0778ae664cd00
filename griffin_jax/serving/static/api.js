// What the page asks of the server. Paths are relative to the page, which a proxy may have anywhere.

export class Refused extends Error {}

function headers(key) {
  const found = { "Content-Type": "application/json" };
  if (key) found.Authorization = `Bearer ${key}`;
  return found;
}

async function check(response) {
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // It is no error of this server's own.
  }
  throw new Refused(message);
}

export async function findModel(key) {
  const response = await check(await fetch("v1/models", { headers: headers(key) }));
  return (await response.json()).data[0];
}

// Yields the events of a stream as objects.
export async function* stream(path, body, key, signal) {
  const options = { method: "POST", headers: headers(key), body: JSON.stringify(body), signal };
  const response = await check(await fetch(path, options));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) throw new Refused("the server ended the stream early");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new Refused(found.error.message);
      yield found;
    }
  }
}
