// Runs the checks of a client and prints one row per check, in the format of rows.py.

import { readFileSync } from "node:fs";

// The picture that pictures.py made (`question`, `colour`, `png`) and the `url` of its server; null if there is none.
export function readPicture() {
  const path = process.env.CLIENTS_PICTURE;
  return path ? JSON.parse(readFileSync(path)) : null;
}

export async function run(client, packageName, checks) {
  const place = new URL(`node_modules/${packageName}/package.json`, import.meta.url);
  const version = JSON.parse(readFileSync(place)).version;
  for (const [ran, check] of Object.entries(checks)) {
    const row = { client, version, ran, result: "passed" };
    try {
      row.remark = await check();
    } catch (error) {
      console.error(error);
      Object.assign(row, { result: "failed", remark: String(error) });
    }
    console.log(JSON.stringify(row));
  }
}
