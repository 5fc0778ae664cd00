// The page: what is shown, and what the buttons do.

import { Refused, findModel, stream } from "./api.js";
import { Conversations } from "./conversations.js";

const at = (id) => document.getElementById(id);
const conversations = new Conversations();
const settings = at("settings");
const SETTINGS = "griffin_jax.settings";
let model = null;
let abort = null; // of the answer that is being written

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toPrecision(3)} ${units[unit]}`;
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

function showConversations() {
  const items = conversations.all.map((one) => {
    const choose = make("button", one.title, { type: "button" });
    choose.setAttribute("aria-current", String(one === conversations.current));
    choose.onclick = () => {
      conversations.choose(one.id);
      show();
      at("title").focus();
    };
    const remove = make("button", "×", { type: "button", "aria-label": `Delete ${one.title}` });
    remove.disabled = abort !== null;
    remove.onclick = () => {
      conversations.remove(one.id);
      if (!conversations.current) conversations.begin("chat");
      show();
      at("message").focus();
    };
    const item = make("li");
    item.append(choose, remove);
    return item;
  });
  at("conversations").replaceChildren(...items);
}

function turnElement(conversation, turn, index) {
  const article = make("article", "", { class: turn.role });
  const names = { user: "You", assistant: "Griffin", text: "Text" };
  article.append(make("h3", names[turn.role]), make("div", turn.text, { class: "text" }));
  const footer = make("footer");
  const rate = turn.seconds ? `${turn.tokens} tokens, ${(turn.tokens / turn.seconds).toFixed(1)} a second` : "";
  footer.append(make("span", rate, { class: "small" }));
  const fork = make("button", "Fork here", { type: "button", class: "plain" });
  // A fork at one's own message is there to say it otherwise.
  const own = turn.role === "user";
  fork.setAttribute("aria-label", `Fork ${own ? "before" : "after"} turn ${index + 1}`);
  fork.onclick = () => {
    conversations.fork(conversation, own ? index - 1 : index);
    show();
    if (own) at("message").value = turn.text;
    say(`Forked: ${own ? "say it otherwise" : "this conversation goes on by itself"}.`);
    at("message").focus();
  };
  footer.append(fork);
  article.append(footer);
  return article;
}

function showGauge(conversation) {
  const tokens = conversation.turns.findLast((turn) => turn.total)?.total ?? 0;
  at("tokens").textContent = `${tokens} tokens`;
  if (!model) return;
  const state = model.state_bytes;
  const cache = tokens * model.transformer_bytes_per_token;
  const most = Math.max(state, cache, 1);
  for (const [name, value] of [["state", state], ["cache", cache]]) {
    at(name).max = most;
    at(name).value = value;
    at(`${name}-text`).textContent = bytes(value);
  }
}

function show() {
  const conversation = conversations.current;
  const chat = conversation.kind === "chat";
  showConversations();
  at("title").textContent = conversation.title;
  at("message-label").textContent = chat ? "Message" : "Text to go on from";
  at("send").textContent = chat ? "Send" : "Continue";
  at("message").required = chat || conversation.turns.length === 0;
  at("turns").replaceChildren(
    ...conversation.turns.map((turn, index) => turnElement(conversation, turn, index)),
  );
  at("turns").lastElementChild?.scrollIntoView({ block: "nearest" });
  showGauge(conversation);
}

function options() {
  const values = Object.fromEntries(new FormData(settings));
  const body = { stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (values[name] !== "") body[name] = Number(values[name]);
  }
  if (values.stop) body.stop = values.stop;
  return { body, system: values.system.trim(), key: values.key };
}

function request(conversation) {
  const { body, system, key } = options();
  if (conversation.kind === "text") {
    const prompt = conversation.turns.map((turn) => turn.text).join("");
    return { path: "v1/completions", key, body: { ...body, prompt } };
  }
  const messages = conversation.turns.map((turn) => ({ role: turn.role, content: turn.text }));
  if (system) messages.unshift({ role: "system", content: system });
  return { path: "v1/chat/completions", key, body: { ...body, messages } };
}

async function answer(conversation) {
  const turn = { role: conversation.kind === "chat" ? "assistant" : "text", text: "" };
  const asked = request(conversation);
  conversation.turns.push(turn);
  abort = new AbortController();
  at("send").disabled = true;
  at("stop").disabled = false;
  at("turns").setAttribute("aria-busy", "true");
  show();
  say("Griffin is writing.");
  const article = at("turns").lastElementChild;
  article.classList.add("writing");
  const text = article.querySelector(".text");
  let first = null;
  let usage = null;
  let count = 0;
  try {
    for await (const event of stream(asked.path, asked.body, asked.key, abort.signal)) {
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      const piece = choice?.delta?.content ?? choice?.text ?? "";
      if (!piece) continue;
      first ??= performance.now();
      count += 1;
      turn.text += piece;
      text.append(piece);
      at("turns").scrollTop = at("turns").scrollHeight;
      const seconds = (performance.now() - first) / 1000;
      if (seconds > 0) at("speed").textContent = `${(count / seconds).toFixed(1)} pieces a second`;
    }
    say("Griffin has written.");
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else say(error instanceof Refused ? error.message : `No answer: ${error.message}`, true);
  }
  if (usage) {
    turn.tokens = usage.completion_tokens;
    turn.seconds = (performance.now() - first) / 1000;
    turn.total = usage.total_tokens;
    at("speed").textContent = `${(turn.tokens / turn.seconds).toFixed(1)} tokens a second`;
    at("cached").textContent = `${usage.prompt_tokens_details.cached_tokens} of ${usage.prompt_tokens} tokens`;
  }
  if (!turn.text) conversation.turns.pop();
  abort = null;
  at("send").disabled = false;
  at("stop").disabled = true;
  at("turns").removeAttribute("aria-busy");
  conversations.save();
  show();
}

async function send() {
  if (abort) return;
  const conversation = conversations.current;
  const text = at("message").value;
  const chat = conversation.kind === "chat";
  if (chat ? !text.trim() : !text && !conversation.turns.length) return;
  if (text) conversation.turns.push({ role: chat ? "user" : "text", text });
  if (conversation.title.startsWith("New ")) conversation.title = text.trim().slice(0, 40) || "Text";
  at("message").value = "";
  conversations.save();
  await answer(conversation);
  // A message that got no answer is there to be sent again.
  if (chat && conversation.turns.at(-1)?.role === "user") {
    at("message").value = conversation.turns.pop().text;
    conversations.save();
    show();
  }
}

async function start() {
  try {
    const kept = JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
    for (const [name, value] of Object.entries(kept)) settings.elements[name].value = value;
  } catch {
    // What is there is none of ours.
  }
  settings.elements.key.value = sessionStorage.getItem("griffin_jax.key") ?? "";
  settings.onsubmit = (event) => event.preventDefault();
  settings.onchange = () => {
    const { key, ...rest } = Object.fromEntries(new FormData(settings));
    localStorage.setItem(SETTINGS, JSON.stringify(rest));
    sessionStorage.setItem("griffin_jax.key", key);
    if (!model) look();
  };
  at("new-chat").onclick = () => (conversations.begin("chat"), show(), at("message").focus());
  at("new-text").onclick = () => (conversations.begin("text"), show(), at("message").focus());
  at("stop").onclick = () => abort?.abort();
  at("form").onsubmit = (event) => (event.preventDefault(), send());
  at("message").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") abort?.abort();
  });
  if (!conversations.current) conversations.begin("chat");
  show();
  await look();
}

async function look() {
  try {
    model = await findModel(settings.elements.key.value);
    at("model").textContent = model.id;
    at("new-chat").hidden = !model.has_chat;
    if (!model.has_chat && !conversations.current.turns.length) conversations.current.kind = "text";
    show();
  } catch (error) {
    at("model").textContent = "";
    say(error instanceof Refused ? error.message : "The server does not answer.", true);
  }
}

start();
