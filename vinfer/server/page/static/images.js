// Images for the next message: chosen, dropped or pasted, kept as data URLs.

import { announce, byId, element } from "./dom.js";

export class ImageTray {
  urls = [];
  #max = 0;

  constructor(onProblem) {
    this.onProblem = onProblem;
    const composer = byId("composer");
    byId("file").addEventListener("change", (event) => {
      this.add(event.target.files);
      event.target.value = "";
    });
    byId("prompt").addEventListener("paste", (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.add(event.clipboardData.files);
    });
    composer.addEventListener("dragover", (event) => {
      event.preventDefault();
      composer.classList.add("dropping");
    });
    composer.addEventListener("dragleave", () => composer.classList.remove("dropping"));
    composer.addEventListener("drop", (event) => {
      event.preventDefault();
      composer.classList.remove("dropping");
      this.add(event.dataTransfer.files);
    });
  }

  /** Take the model's limit of images; 0 if it takes none. */
  allow(max) {
    this.#max = max;
    byId("attach").hidden = max === 0;
    if (this.urls.length > max) this.clear();
  }

  async add(files) {
    const images = [...files].filter((file) => file.type.startsWith("image/"));
    if (!images.length) return;
    if (this.urls.length + images.length > this.#max) {
      this.onProblem(this.#max ? `this model takes ${this.#max} images at most` : "this model takes no images");
      return;
    }
    this.urls.push(...(await Promise.all(images.map(dataUrl))));
    this.#show();
    announce(`${images.length} image${images.length > 1 ? "s" : ""} added`);
  }

  /** Return the images, and forget them. */
  take() {
    const taken = this.urls;
    this.clear();
    return taken;
  }

  clear() {
    this.urls = [];
    this.#show();
  }

  #show() {
    byId("images").replaceChildren(...this.urls.map((src, at) => {
      const remove = element("button", { type: "button", "aria-label": `Remove image ${at + 1}` }, "×");
      remove.addEventListener("click", () => {
        this.urls.splice(at, 1);
        this.#show();
        byId("prompt").focus();
      });
      return element("li", {}, element("img", { src, alt: `Image ${at + 1} to send` }), " ", remove);
    }));
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
