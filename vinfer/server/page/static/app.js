// Starts the page: the two views, the API key, and the list of models.

import { fetchJson, savedKey, saveKey } from "./api.js";
import { Chat } from "./chat.js";
import { byId, element } from "./dom.js";
import { Status } from "./status.js";

const chat = new Chat();
let models = [];
let lastPhases = "";

function showView(name) {
  for (const view of ["chat", "status"]) {
    byId(view).hidden = view !== name;
    byId(`show-${view}`).setAttribute("aria-pressed", String(view === name));
  }
}

function useModel() {
  chat.useModel(models.find((model) => model.id === byId("model").value));
}

async function loadModels() {
  try {
    models = (await fetchJson("v1/capabilities")).models;
    chat.needsKey = savedKey() !== "";
    byId("settings-problem").textContent = "";
  } catch (error) {
    models = [];
    chat.needsKey = error.status === 401;
    byId("settings-problem").textContent = error.status === 401 ? "This server needs an API key: type it above." : error.message;
    if (error.status === 401 && document.activeElement === document.body) byId("key").focus();
  }
  // A model without a chat template cannot chat.
  const able = models.filter((model) => model.forms.some((form) => form.path === "/v1/chat/completions"));
  const chosen = byId("model").value;
  byId("model").replaceChildren(...able.map(({ id }) => element("option", { value: id }, id)));
  if (able.some(({ id }) => id === chosen)) byId("model").value = chosen;
  useModel();
}

async function showPhases({ phase, models: loading }) {
  const phases = [phase, ...loading.map((model) => model.phase)].join();
  if (phases === lastPhases) return;
  lastPhases = phases;
  byId("phase").textContent = phase;
  await loadModels();
}

byId("key").value = savedKey();
byId("key").addEventListener("change", (event) => {
  saveKey(event.target.value.trim());
  loadModels();
});
byId("model").addEventListener("change", useModel);
byId("show-chat").addEventListener("click", () => showView("chat"));
byId("show-status").addEventListener("click", () => showView("status"));
// On a phone the settings would push the conversation out of sight.
byId("more").open = !matchMedia("(max-width: 46rem)").matches;
new Status(showPhases);
